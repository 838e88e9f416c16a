RUN apt-get update
FROM python
ENV PATH = /opt/bin
COPY ../config /app
CMD ['python', 'app.py']
EXPOSE 53/udp
RUN --timeout=5min make
RUN cat <<EOF
never ended
