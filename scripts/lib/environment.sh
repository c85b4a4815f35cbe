# Sourced by the scripts, from the top of the checkout: makes the virtual environment .venv and keeps it
# up to date. Nothing outside the checkout is written, but for the caches of uv and pip. Plain enough for the bash 3.2 of macOS.

# uv must neither fetch a Python nor complain when its cache lies on another filesystem.
export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE="${UV_LINK_MODE:-copy}" PIP_DISABLE_PIP_VERSION_CHECK=1
unset VIRTUAL_ENV PYTHONHOME

venv_python=.venv/bin/python

say() { printf '%s\n' "$*" >&2; }

# The first Python that is new enough: python3 if it can, then the numbered ones.
find_python() {
    local name
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    say "jsonqueue needs Python 3.11 or newer; python3 is $(python3 -V 2>&1 || echo 'not there')."
    say "Install one, or name one that is not on the PATH:  PYTHON=/path/to/python3.12 $0"
    return 1
}

find_uv() {
    if [ -x .venv/bin/uv ]; then echo .venv/bin/uv; else command -v uv; fi
}

make_venv() {
    [ -x $venv_python ] && $venv_python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    local python
    python=$(find_python)
    say "· virtual environment .venv ($("$python" -V))"
    rm -rf .venv
    # Debian's python3 comes without ensurepip unless python3-venv is installed: then .venv is made without a pip of its own.
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" .venv
    elif ! "$python" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv
        "$python" -m venv --without-pip .venv
    fi
    # Remembered for installing into .venv with a pip that lives outside of it.
    echo "$python" >.venv/made-by
}

# pip, working on .venv wherever it itself lives. The system's Python is never installed into.
venv_pip() {
    if $venv_python -m pip --version >/dev/null 2>&1; then
        $venv_python -m pip "$@"
    else
        "$(cat .venv/made-by 2>/dev/null || find_python)" -m pip --python $venv_python "$@"
    fi
}

# .venv with a uv that can be used: the machine's own, or one inside .venv.
prepare_tools() {
    make_venv
    find_uv >/dev/null && return
    say "· uv (into .venv)"
    venv_pip install --quiet --constraint constraints.txt uv || say "  no uv to be had: pip does its work"
}

# install_into_venv REQUIREMENT…: under the versions of constraints.txt, the build's own included.
install_into_venv() {
    local uv
    if uv=$(find_uv) && "$uv" pip install --quiet --python $venv_python --constraint constraints.txt \
        --build-constraint constraints.txt "$@" 2>.venv/uv.log; then
        return
    fi
    # uv reads none of pip's configuration: where packages come from an index that only pip knows of, pip still finds them.
    [ -z "$uv" ] || say "  uv could not install (.venv/uv.log says why); trying pip"
    venv_pip install --quiet --constraint constraints.txt "$@"
}

# prepare NAME REQUIREMENT…: does nothing if .venv already has what pyproject.toml and constraints.txt ask for.
prepare() {
    local name=$1 wanted
    shift
    make_venv
    wanted=$(cat pyproject.toml constraints.txt scripts/lib/environment.sh | cksum)
    [ "$(cat ".venv/ready-$name" 2>/dev/null)" = "$wanted" ] && return
    prepare_tools
    say "· packages (exact versions: constraints.txt)"
    install_into_venv "$@"
    echo "$wanted" >".venv/ready-$name"
}
