#!/bin/sh
# usage: fresh_clone.sh [--python PYTHON] [--uv UV] [--user USER] [--tests PYTEST-ARGUMENTS]
# What a stranger does first, in a clone of the last commit: `make demo`, and `make test` with the tests named (all). The
# clone lies in a folder with a space in its name, with a home and caches of its own, which are empty. Beforehand one
# hash is changed, and the install must fail. --uv: have this uv on the PATH, else none is. --user: be this user (by root).
set -eu
python= uv= user= tests=tests/unit
while [ $# -gt 0 ]; do
    case $1 in
    --python) python=$2 ;;
    --uv) uv=$2 ;;
    --user) user=$2 ;;
    --tests) tests=$2 ;;
    *) sed -n 2,6p "$0" >&2; exit 2 ;;
    esac
    shift 2
done
source=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
clone="$place/a clone"
git clone --quiet "$source" "$clone"
mkdir "$place/home" "$place/bin"
# The PATH without any uv; the given one in front.
path=$place/bin
for one in $(printf %s "$PATH" | tr ':' ' '); do
    [ -x "$one/uv" ] || path=$path:$one
done
[ -z "$uv" ] || ln -s "$uv" "$place/bin/uv"
as() {
    [ -n "$user" ] || { "$@"; return; }
    setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups "$@"
}
if [ -n "$user" ]; then
    chmod 755 "$place"
    chown -R "$user" "$place"
fi
in_clone() {
    as env PATH="$path" HOME="$place/home" XDG_CACHE_HOME="$place/home/.cache" ${python:+PYTHON="$python"} \
        sh -c 'cd "$1" && shift && exec "$@"' sh "$clone" "$@"
}
lock="$clone/requirements/default.txt"
cp "$lock" "$place/lock"
sed '/^msgspec==/,/^[a-z]/ s/sha256:../sha256:00/' "$place/lock" >"$lock"
if in_clone make install >"$place/refused" 2>&1 || ! grep -qi hash "$place/refused"; then
    cat "$place/refused"
    echo "FAILED: an install with a changed hash was not refused" >&2
    exit 1
fi
echo "refused: a changed hash"
cat "$place/lock" >"$lock"
in_clone make demo COUNT=2 SIZE=64
in_clone make test ARGS="$tests"
in_clone .venv/bin/python -c 'import sys; print("passed:", sys.version.split()[0])'
