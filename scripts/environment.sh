# Sourced by demo.sh and test.sh, from the repository's root: choose a Python, make a virtual environment or a copy of
# one of Colab's images, install into it once. A stamp file in the environment tells whether what it holds is still
# what is asked for.

say() { printf '== %s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

# A program that runs as root on a Debian or Ubuntu machine may install the system's own packages.
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
    say "installing the system package $1"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$1" >/dev/null
}

# "3.11" if the command is a Python that runs, else nothing.
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# Sets PYTHON: the one asked for, or python3, or python3.11 where python3 is older or newer than the tested range.
choose_python() {
    local asked=$1 version
    if [ -n "$asked" ]; then
        PYTHON=$asked
    else
        PYTHON=python3
        case $(python_version python3) in
        3.10 | 3.11 | 3.12 | 3.13 | 3.14) ;;
        *) [ -z "$(python_version python3.11)" ] || PYTHON=python3.11 ;;
        esac
    fi
    version=$(python_version "$PYTHON")
    [ -n "$version" ] || fail "$PYTHON is not a Python that runs; install Python 3.10 or newer, or name one in NEWLLM_PYTHON."
    case $version in
    3.[0-9] | [0-2].*) fail "$PYTHON is Python $version; New-LLM needs 3.10 or newer: name one in NEWLLM_PYTHON." ;;
    esac
}

# make_environment DIR REQUIREMENT... : requirements as for pip install, with the tested versions of constraints.txt.
make_environment() {
    local dir=$1 version stamp quiet=
    shift
    version=$("$PYTHON" -c 'import sys; print(sys.version)')
    stamp=$(printf '%s\n' "$version" "$PWD" "$*" | cat - setup.py constraints.txt | cksum)
    if [ -x "$dir/bin/python" ] && [ "$(cat "$dir/newllm-installed" 2>/dev/null)" = "$stamp" ]; then
        say "environment $dir is up to date"
        return
    fi
    say "making the environment $dir with Python ${version%% *} (a few minutes the first time)"
    rm -f "$dir/newllm-installed"
    ensure_venv
    if [ "$("$dir/bin/python" -c 'import pip, sys; print(sys.version)' 2>/dev/null)" != "$version" ]; then
        "$PYTHON" -m venv --clear "$dir"
    fi
    [ -t 1 ] || quiet=-qq # a person sees pip's progress, a log only its errors
    "$dir/bin/python" -m pip install $quiet --disable-pip-version-check -c constraints.txt "$@"
    printf '%s\n' "$stamp" >"$dir/newllm-installed"
}

# make_newest DIR REQUIREMENT... : the newest releases of everything but torch, of which every build is large; and says
# which of them are not the tested ones.
make_newest() {
    local dir=$1
    shift
    ensure_venv
    [ -x "$dir/bin/python" ] || "$PYTHON" -m venv "$dir"
    say "bringing $dir to the newest releases"
    "$dir/bin/python" -m pip install -qq --disable-pip-version-check --upgrade --upgrade-strategy eager \
        -c <(grep '^torch==' constraints.txt) "$@"
    say "newer than the tested versions:"
    awk -F== 'NR == FNR { sub(/;.*/, "", $2); tested[tolower($1)] = $2; next }
        tolower($1) in tested && tested[tolower($1)] != $2 { print "   " $1, $2, "(tested: " tested[tolower($1)] ")" }' \
        <(grep == constraints.txt) <("$dir/bin/python" -m pip freeze)
}

# make_image NAME DIR: a copy of the Colab image that tests/images/NAME.txt lists, as far as this project meets it.
# torch is the image's version in the build that the index has, CUDA's packages included (5 GB): it runs on a CPU, too.
make_image() {
    local list=tests/images/$1.txt dir=$2 wanted pins version
    wanted='accelerate datasets hf-xet ipykernel ipython ipywidgets jupyterlab_widgets matplotlib nbclient nbformat numpy peft
        psutil safetensors sentencepiece tensorboard tokenizers torch torchao transformers widgetsnbextension'
    if [ "$(cat "$dir/newllm-image" 2>/dev/null)" = "$(cksum <"$list")" ]; then return; fi
    version=$(sed -n '1s/.*Python \(3\.[0-9]*\).*/\1/p' "$list")
    find_python "$version"
    say "making a copy of Colab's image of $1 in $dir with Python $version (some minutes, the first time)"
    "$PYTHON" -m venv --clear "$dir"
    # The index may have torch for another release of CUDA than the image: its parts follow torch.
    grep '==' "$list" | grep -viE '^(nvidia|cuda|cupy|pylibcu|libcu|rmm|cudf|cuml)' >"$dir/constraints.txt"
    pins=$(for name in $wanted; do grep -iE "^${name//_/[-_]}==" "$list"; done)
    "$dir/bin/python" -m pip install -qq --disable-pip-version-check --upgrade "pip>=25"
    # shellcheck disable=SC2086  # one requirement a word
    "$dir/bin/python" -m pip install -qq --disable-pip-version-check -c "$dir/constraints.txt" $pins
    cksum <"$list" >"$dir/newllm-image"
}

# Sets PYTHON to an interpreter of the version asked for: on the path, or of pyenv.
find_python() {
    local candidate
    for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        if [ "$(python_version "$candidate")" = "$1" ]; then
            PYTHON=$candidate
            return
        fi
    done
    fail "there is no Python $1 on this machine, which that image has; install it (pyenv install $1)."
}

# Debian and Ubuntu keep what a virtual environment needs in a package of its own.
ensure_venv() {
    local package
    if "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    package=python$(python_version "$PYTHON")-venv
    if can_apt; then
        apt_install "$package"
    else
        fail "$PYTHON cannot make virtual environments; run: sudo apt-get install $package"
    fi
}
