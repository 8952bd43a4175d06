# The server with the model that comes with the package: docker build -t m2bert . && docker run -p 8000:8000 m2bert
# With a store: docker run -p 8000:8000 -v ./store:/store:ro m2bert /store --host 0.0.0.0
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt .
RUN python -m venv /opt/m2bert && /opt/m2bert/bin/pip install --no-cache-dir -c constraints.txt torch
COPY . .
# The libraries hold the kernels of every instruction set; the one for the machine is chosen when they are loaded.
ENV M2OPS_CUDA=0
RUN /opt/m2bert/bin/pip install --no-cache-dir -c constraints.txt '.[serve]'

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 m2bert
COPY --from=build /opt/m2bert /opt/m2bert
ENV PATH=/opt/m2bert/bin:$PATH PYTHONUNBUFFERED=1
USER m2bert
WORKDIR /home/m2bert
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s --interval=15s --timeout=5s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["m2bert", "serve"]
CMD ["--model", "m2-bert-mini", "--host", "0.0.0.0"]
