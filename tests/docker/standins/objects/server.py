"""moto's buckets on the port of the object store, with its page of health; the keys of callers are not looked at."""

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

buckets = DomainDispatcherApplication(create_backend_app)


def app(environment, start_response):
    """Answer the healthcheck, and hand everything else to moto."""
    if environment["PATH_INFO"] == "/healthz":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok\n"]
    return buckets(environment, start_response)


run_simple("0.0.0.0", 8333, app, threaded=True)
