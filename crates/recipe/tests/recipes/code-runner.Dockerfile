# A template with a running Jupyter server.
FROM template:python:3.12
user runner
workdir /home/runner
env PATH=/home/runner/.local/bin:$PATH
run --timeout=5m pip install --user jupyter-server
copy --chmod=600 jupyter_config.py .jupyter/
start jupyter server --port=8888
healthcheck --interval=3s --timeout=10s --start-period=0 --retries=20 cmd curl -fs http://localhost:8888/api
run echo "the server runs already" > note
