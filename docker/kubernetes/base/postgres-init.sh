#!/bin/sh
# A database and a user each for the store and for MLflow; the passwords come from files.
set -eu
password() { cat "/run/secrets/$1"; }
psql --username postgres --set ON_ERROR_STOP=1 --set store="$(password store_password)" \
    --set mlflow="$(password mlflow_database_password)" <<'SQL'
CREATE USER kdstudy PASSWORD :'store';
CREATE DATABASE kdstudy OWNER kdstudy;
CREATE USER mlflow PASSWORD :'mlflow';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT ON DATABASE kdstudy, mlflow, mlflow_auth FROM PUBLIC;
SQL
