# Sourced by install_peers.sh and install_floors.sh.
#
# An overlay is a folder to put on PYTHONPATH: it hides the .venv's version of what it holds and shares the rest
# (torch above all). A second run installs nothing; change an overlay's packages and it is made anew.

# overlay NAME PACKAGE...  installs the packages, without their dependencies, into .peers/NAME
overlay() {
    local name=$1 folder=.peers/$1
    shift
    if [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$*" ]; then
        echo "$folder is up to date"
        return
    fi
    rm -rf "$folder"
    "${PYTHON:-.venv/bin/python}" -m pip install --quiet --disable-pip-version-check --target "$folder" --no-deps "$@"
    echo "$*" >"$folder/.stamp"
    echo "$folder: $*"
}
