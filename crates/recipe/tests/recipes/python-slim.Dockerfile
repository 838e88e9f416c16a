# syntax=docker/dockerfile:1
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=off

WORKDIR /app

# What rarely changes comes first.
COPY requirements.txt .
RUN --timeout=10m pip install --upgrade pip && \
    pip install -r requirements.txt

COPY . .
RUN adduser --disabled-password --gecos '' app
USER app
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "main:app", "--host", "0.0.0.0"]
