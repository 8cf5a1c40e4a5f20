"""The `post-receive` hook for a bare git server: it reports each push to Pushgate.

Hooks: https://git-scm.com/docs/githooks#post-receive. `providers.generic` reads what the hook sends.
"""

from shlex import quote


def hook_script(*, url: str, secret_file: str) -> str:
    """Return the script for a connection's webhook URL and the path of the file with its secret.

    POSIX sh with curl and openssl. The secret is never an argument of a program, where `ps` would show
    it. A push waits for one quick attempt; further attempts, over 15 minutes, run in the background.
    """
    return _SCRIPT.replace("@URL@", quote(url)).replace("@SECRET_FILE@", quote(secret_file))


# git waits until all processes have closed the hook's output, so background attempts have no output.
_SCRIPT = r"""#!/bin/sh
# Reports pushes to Pushgate. Save it as hooks/post-receive of the bare repository and make it executable.
# Needs curl and openssl. It never makes a push fail: it prints its errors to the user who pushes.
url=@URL@
secret_file=@SECRET_FILE@  # mode 0600, owned by the user that git runs as
set -u
umask 077
LC_ALL=C
export LC_ALL

say() { printf 'Pushgate: %s\n' "$*" >&2; }

# HMAC-SHA256 (RFC 2104) of standard input, in base64, with the secret in $key as 64 bytes of hex. openssl
# only hashes: its own HMAC takes the key as an argument, which everybody on the machine could read.
pad() {
    rest=$key octets=
    while [ -n "$rest" ]; do
        tail=${rest#??}
        octets=$octets$(printf '\\%03o' $((0x${rest%"$tail"} ^ $1)))
        rest=$tail
    done
    printf "$octets"
}
sha256() { openssl dgst -sha256 -binary; }
hmac() { { pad 0x5c; { pad 0x36; cat; } | sha256; } | sha256 | openssl base64 -A; }
hex() { od -An -v -tx1 | tr -d ' \n'; }

read_key() {
    secret=
    read -r secret <"$secret_file" || [ -n "$secret" ] || return 1
    case $secret in
        '') return 1 ;;
        whsec_*) key=$(printf '%s' "${secret#whsec_}" | openssl base64 -d -A | hex) ;;
        *) key=$(printf '%s' "$secret" | hex) ;;
    esac
    [ -n "$key" ] || return 1
    # A key longer than a block of SHA-256 counts as its hash.
    [ "${#key}" -le 128 ] || key=$(pad 0 | sha256 | hex)
    while [ "${#key}" -lt 128 ]; do key=${key}00; done
}

# Try once, for at most $1 seconds. 0: accepted, or refused for good, with a message; 1: try again later.
report() {
    now=$(date +%s)
    signature=$({ printf '%s.%s.' "$id" "$now"; cat "$body"; } | hmac)
    status=$(curl --silent --output /dev/null --write-out '%{http_code}' --max-time "$1" \
        --header 'Content-Type: application/json' --header "webhook-id: $id" \
        --header "webhook-timestamp: $now" --header "webhook-signature: v1,$signature" \
        --data-binary "@$body" --url "$url" 2>/dev/null)
    case $status in
        2??) return 0 ;;
        408 | 429 | 5?? | 000 | '') return 1 ;;
        *) say "refused with status $status: the push succeeded, but Pushgate did not record it"; return 0 ;;
    esac
}

read_key || { say "cannot read a secret in $secret_file"; exit 0; }
body=$(mktemp) || { say "cannot make a temporary file"; exit 0; }
trap 'rm -f "$body"' EXIT
{
    printf '{"updates":['
    # Each line that git gives is: before, after, ref. A ref may hold a quote, but no space and no backslash.
    sed 's/"/\\"/g; s/^\([^ ]*\) \([^ ]*\) \(.*\)$/{"ref":"\3","before":"\1","after":"\2"}/' | paste -s -d , -
    printf '],"pusher":{"name":"'
    printf '%s' "${GL_USER:-${REMOTE_USER:-$(id -un)}}" | tr -d '\000-\037\177' | sed 's/[\\"]/\\&/g'
    printf '"}}'
} | tr -d '\n' >"$body"
id=$(openssl rand -hex 16)

report 3 && exit 0
say "not reached (status ${status:-none}); retrying in the background"
trap - EXIT
(
    trap '' HUP
    for seconds in 5 15 60 180 600; do
        sleep "$seconds"
        report 30 && break
    done
    rm -f "$body"
) </dev/null >/dev/null 2>&1 &
exit 0
"""
