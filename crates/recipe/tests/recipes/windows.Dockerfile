# escape=`
FROM template:minimal

RUN echo one `
    && echo two
COPY <<EOF /etc/motd
hello
EOF
ENV WHERE=C:\temp
CMD ["sh"]
