FROM postgres:16
LABEL org.opencontainers.image.title="db"
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ADD https://example.org/init.sql /docker-entrypoint-initdb.d/
ONBUILD RUN true
HEALTHCHECK NONE
