"""The page in a real browser, when there is one: no console errors, no outside requests, and it fits a phone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from analysis import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--hide-scrollbars",
    "--enable-logging=stderr", "--virtual-time-budget=3000", "--allow-file-access-from-files",
]  # fmt: skip
PROBE = """<iframe id="page" src="{address}" style="width:375px;height:800px;border:0"></iframe><script>
document.getElementById("page").onload = event => {{
  const seen = event.target.contentWindow;
  const entries = seen.performance.getEntriesByType("resource");
  const asked = entries.map(entry => entry.name).filter(name => !/^data:/.test(name));
  document.body.append("wide " + seen.document.documentElement.scrollWidth + ", asked for [" + asked + "]");
}};
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def opened(address: str, profile: Path) -> tuple[str, str]:
    """The document after loading, and what the browser logged."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("study", ["ablation", "search"])
def test_the_page_opens_without_an_error_in_the_console(study: str, store: str, tmp_path: Path) -> None:
    # The page's own policy forbids every request: one that is tried is an error in the console.
    document, log = opened(report(store, study, tmp_path / "out").as_uri(), tmp_path / "profile")
    assert "What to keep in mind" in document
    assert "CONSOLE" not in log


def test_a_request_or_a_script_would_show_in_the_console(store: str, tmp_path: Path) -> None:
    page = report(store, "one-seed", tmp_path / "out")
    spoilt = page.read_text(encoding="utf-8").replace(
        "<nav", '<img src="http://127.0.0.1:9/x.png"><script>0</script><nav', 1
    )
    page.write_text(spoilt, encoding="utf-8")
    _, log = opened(page.as_uri(), tmp_path / "profile")
    assert log.count("CONSOLE") == 2


def test_a_phone_sees_a_page_as_wide_as_itself_that_asked_for_nothing(store: str, tmp_path: Path) -> None:
    page = report(store, "ablation", tmp_path / "out")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(address=page.as_uri()), encoding="utf-8")
    document, _ = opened(probe.as_uri(), tmp_path / "profile")
    assert "wide 375, asked for []" in document
