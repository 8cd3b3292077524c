FROM python:3.13-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /srv/wattline

# First the packages: this layer is rebuilt only when the lock changes.
COPY requirements/runtime.txt requirements/runtime.txt
RUN pip install --require-hashes -r requirements/runtime.txt

COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY app app
COPY migrations migrations
COPY timescale timescale
# Editable: the service finds alembic.ini, migrations/ and timescale/ beside app/, in this tree.
RUN pip install --no-deps --no-build-isolation -e . && useradd --system wattline

USER wattline
EXPOSE 8000
ENTRYPOINT ["wattline"]
CMD ["serve", "--host", "0.0.0.0"]
