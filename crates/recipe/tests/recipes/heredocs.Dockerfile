# escape=\
FROM template:minimal

RUN <<EOF
set -eu
apt-get update
apt-get install -y --no-install-recommends nginx
EOF

RUN python3 - <<'PY' > /etc/motd
print("hello $USER")
PY

RUN <<-TABS
	echo one
		echo two
	TABS

RUN <<EOF
#!/usr/bin/env python3
print("a script")
EOF

ARG PORT=8080
COPY <<EOF /etc/nginx/conf.d/default.conf
server {
    listen ${PORT};
    location / { return 200 "\$uri\\n"; }
}
EOF
COPY --chmod=0755 <<'one.sh' <<"two.sh" /usr/local/bin/
#!/bin/sh
echo $1
one.sh
#!/bin/sh
two.sh
START nginx -g 'daemon off;'
