# Pushgate as an image: Python, git, an ssh client, and what requirements/build.txt locks by hash.
# It runs as 10001, never as root, and writes to /var/lib/pushgate and /tmp only: the rest may be read-only.
#   docker build --tag pushgate .
#   docker run --read-only --tmpfs /tmp --init --publish 127.0.0.1:8080:8080 --volume pushgate:/var/lib/pushgate pushgate

# The minor version that the tests run on.
FROM python:3.11.15-slim-trixie@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93 AS base

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/build.txt requirements/build.txt
# Each file is checked against its hash here. What follows takes these files, and asks no network.
RUN python -m pip wheel --require-hashes --requirement requirements/build.txt --wheel-dir /wheels
COPY pyproject.toml README.md LICENSE ./
COPY providers providers
COPY gateway gateway
# The builder and its parts stay behind: the environment gets Pushgate and what that asks for.
RUN python -m pip install --no-index --find-links /wheels --requirement requirements/build.txt \
    && python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/pushgate \
    && python -m pip --python /opt/pushgate/bin/python install --no-index --find-links /wheels /wheels/pushgate-*.whl
# A third of it is symbols for debuggers. What wheels bring in *.libs has been edited, and stays as it is.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/* \
    && find /opt/pushgate -name '*.libs' -prune -o -name '*.so' -exec strip --strip-debug {} +

FROM base
LABEL org.opencontainers.image.title="Pushgate" \
      org.opencontainers.image.description="Verified webhooks of git providers in, execution requests out." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.15-slim-trixie"
# git's version is Debian's, for the security fixes. Its servers, and what of it is Perl, nothing here calls. ssh refuses to
# run for a user who has no name.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client \
    && dpkg --purge --force-depends perl libperl5.40 perl-modules-5.40 liberror-perl \
    && find /usr/lib/git-core -regex '.*/\(git-\(daemon\|shell\|imap-send\|http-[bfp].*\)\|scalar\)' -delete \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 pushgate \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/pushgate --shell /usr/sbin/nologin pushgate \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/pushgate
COPY --from=build /opt/pushgate /opt/pushgate
ENV PATH=/opt/pushgate/bin:$PATH \
    HOME=/var/lib/pushgate \
    PYTHONDONTWRITEBYTECODE=1 \
    PUSHGATE_HOST=0.0.0.0 \
    PUSHGATE_DATA_DIR=/var/lib/pushgate \
    PUSHGATE_LOG_FORMAT=json
WORKDIR /var/lib/pushgate
VOLUME /var/lib/pushgate
EXPOSE 8080
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PUSHGATE_PORT\", 8080)}/livez', timeout=4)"]
ENTRYPOINT ["pushgate"]
CMD ["serve"]
