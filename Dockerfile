# The image of Pushgate: Python, git, an ssh client, and the dependencies that requirements/build.txt pins by hash.
# It runs as user 10001 or as any other user of group 0, never as root, without capabilities and setuid programs. It writes
# only to /var/lib/pushgate and /tmp: the rest may be read-only.
#   docker build --tag pushgate .
#   docker run --read-only --tmpfs /tmp --init --publish 127.0.0.1:8080:8080 --volume pushgate:/var/lib/pushgate pushgate

# Without internet access: the registry, the package index and the mirrors of Debian from which the build downloads.
# Their credentials and CA are build secrets: docs/kubernetes.md, "Building the image".
ARG REGISTRY=docker.io/library

# The minor version with which the tests run. docs/kubernetes.md, "Building the image", says how to renew the two bases.
FROM ${REGISTRY}/python:3.11.15-slim-trixie@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93 AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
ARG DEBIAN_MIRROR
ARG DEBIAN_SECURITY_MIRROR
RUN --mount=type=bind,source=docker/apt-get,target=/apt-get \
    --mount=type=secret,id=apt-auth --mount=type=secret,id=ca.crt,mode=0444 \
    /apt-get update \
    && /apt-get install --yes --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/build.txt requirements/build.txt
# Each file is checked against its hash here. The following steps use these files, without the network.
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt,mode=0444 \
    if [ -f /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf \
        python -m pip wheel --require-hashes --requirement requirements/build.txt --wheel-dir /wheels
COPY pyproject.toml README.md LICENSE ./
COPY providers providers
COPY gateway gateway
# The build tools are not copied: the environment contains only Pushgate and its dependencies.
RUN python -m pip install --no-index --find-links /wheels --requirement requirements/build.txt \
    && python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/pushgate \
    && python -m pip --python /opt/pushgate/bin/python install --no-compile --no-index --find-links /wheels 'pushgate[otlp]'
# The hashes of the installed files, for the SBOM.
WORKDIR /wheels
RUN sha256sum -- *.whl > /opt/pushgate/wheels.sha256
# Remove what never runs: debug symbols, tests, and Python's installers, tutorials and GUI toolkits.
# The libraries that wheels bundle in *.libs have been patched by their builders, and must not be stripped.
WORKDIR /usr/local/lib/python3.11
RUN find /opt/pushgate -name '*.libs' -prune -o -name '*.so' -exec strip --strip-unneeded {} + \
    && find /opt/pushgate -depth -type d -name tests -exec rm -r {} + \
    && find /usr/local -depth -name __pycache__ -exec rm -r {} + \
    && find /usr/local/bin -not -type d -not -regex '.*/python[0-9.]*' -delete \
    && rm -rf /usr/local/include site-packages/* ensurepip idlelib lib2to3 pydoc_data tkinter turtle* lib-dynload/_tkinter.*
# Compile bytecode only for what a start and the health check load; with a read-only root, none can be written later.
RUN PUSHGATE_DATA_DIR=/tmp/pushgate /opt/pushgate/bin/pushgate migrate \
    && /opt/pushgate/bin/python -c "import gateway.app, opentelemetry.exporter.otlp.proto.http.trace_exporter, psycopg, urllib.request"

# The base of Python's own image, without pip and similar tools, which a later layer could not remove.
FROM ${REGISTRY}/debian:trixie-20260918-slim@sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a
# git is Debian's, for its security fixes. dpkg omits git's servers and ssh's helpers for hardware keys.
# Nothing here runs git's Perl scripts: an empty package replaces Perl, so that dpkg and apt see their dependencies met.
# ssh refuses to run for a user without a name: libnss-unknown names each user that /etc/passwd lacks. With it, useradd
# takes every number for used.
# A platform that chooses the user runs it with group 0, which has the rights of user 10001 on the data folder.
ARG DEBIAN_MIRROR
ARG DEBIAN_SECURITY_MIRROR
RUN --mount=type=bind,source=docker/apt-get,target=/apt-get \
    --mount=type=secret,id=apt-auth --mount=type=secret,id=ca.crt,mode=0444 \
    printf 'path-exclude /usr/%s\n' bin/git-shell bin/scalar lib/git-core/git-daemon lib/git-core/git-http-\[bfp\]\* \
        lib/git-core/git-imap-send lib/git-core/git-shell lib/git-core/scalar lib/openssh/\* share/gitweb/\* \
        > /etc/dpkg/dpkg.cfg.d/pushgate \
    && mkdir --parents /tmp/no-perl/DEBIAN \
    && printf '%s\n' 'Package: pushgate-no-perl' 'Version: 1' 'Architecture: all' 'Provides: perl, liberror-perl' \
        'Maintainer: Pushgate' 'Description: replaces Perl, which Pushgate never uses' > /tmp/no-perl/DEBIAN/control \
    && dpkg-deb --build /tmp/no-perl /tmp/no-perl.deb \
    && groupadd --gid 10001 pushgate \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/pushgate --shell /usr/sbin/nologin pushgate \
    && /apt-get update \
    && /apt-get install --yes --no-install-recommends /tmp/no-perl.deb ca-certificates git openssh-client libnss-unknown \
        libbz2-1.0 libffi8 liblzma5 libncursesw6 libreadline8t64 libsqlite3-0 libssl3t64 libuuid1 netbase tzdata zlib1g \
    && rm -rf /tmp/no-perl* /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
    && install --directory --owner 10001 --group 0 --mode 0770 /var/lib/pushgate \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=build /usr/local /usr/local
COPY --from=build /opt/pushgate /opt/pushgate
# Fail the build if a library is missing that Python or a package needs.
RUN ldconfig && /opt/pushgate/bin/python -B -c "import gateway.app, psycopg"
ENV PATH=/opt/pushgate/bin:$PATH \
    LANG=C.UTF-8 \
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
# Last, because the revision and the time differ in each build.
ARG VERSION=0.1.0
ARG REVISION
ARG CREATED
ARG SOURCE
LABEL org.opencontainers.image.title="Pushgate" \
      org.opencontainers.image.description="Verified webhooks of git providers in, execution requests out." \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-20260918-slim" \
      org.opencontainers.image.base.digest="sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a"
ENTRYPOINT ["pushgate"]
CMD ["serve"]
