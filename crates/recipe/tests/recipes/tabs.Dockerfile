	# A comment behind a tab.
FROM	debian:12-slim
RUN	apt-get update \
	# what the build needs
	&& apt-get install -y curl \

	&& rm -rf /var/lib/apt/lists/*	
	ENV	A=1	B="x	y"
