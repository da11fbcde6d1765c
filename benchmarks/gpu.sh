#!/usr/bin/env bash
# The tests and the benchmarks of a GPU, on a machine that has one and needs no network.
#
#   benchmarks/gpu.sh wheels [PYTHON]       with a network: what such a machine may lack, for a version of Python (3.12),
#                                           into gpu-wheels/ beside this checkout's files
#   benchmarks/gpu.sh tests|bench|all [DIR] there: ten minutes each; what was found is in DIR (gpu-results)
set -uo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
out=$(realpath -m "${2:-gpu-results}")
python=${PYTHON:-python3}

# Module, and the distribution that has it. Parquet and CSV files need polars too, which is large: no test here reads one.
needed="attr:attrs cattrs:cattrs click:click rich:rich markdown_it:markdown-it-py mdurl:mdurl pygments:pygments
tomli_w:tomli-w safetensors:safetensors sklearn:scikit-learn joblib:joblib threadpoolctl:threadpoolctl scipy:scipy
matplotlib:matplotlib contourpy:contourpy cycler:cycler fontTools:fonttools kiwisolver:kiwisolver pyparsing:pyparsing
dateutil:python-dateutil six:six PIL:pillow packaging:packaging pytest:pytest pluggy:pluggy iniconfig:iniconfig
hypothesis:hypothesis sortedcontainers:sortedcontainers"

if [ "$what" = wheels ]; then
    exec "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "${2:-3.12}" \
        --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 --platform any -d gpu-wheels \
        $(printf '%s\n' $needed | cut -d: -f2 | grep -vx scipy)
fi

mkdir -p "$out/site"
missing=$("$python" - $needed <<'PY'
import importlib.util, sys
print(*[pair.split(":")[1] for pair in sys.argv[1:] if importlib.util.find_spec(pair.split(":")[0]) is None])
PY
)
if [ -n "$missing" ]; then
    echo "missing here: $missing"
    "$python" -m pip install -q --no-index --no-deps --find-links gpu-wheels --target "$out/site" $missing ||
        { echo "bring them as wheels: benchmarks/gpu.sh wheels $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; exit 1; }
fi
export PYTHONPATH="$PWD:$out/site${PYTHONPATH:+:$PYTHONPATH}" PIPE_CACHE="$out/cache"
{
    nvidia-smi
    "$python" -c 'import torch, sys; print(sys.version); print(torch.__version__, torch.version.cuda, torch.cuda.is_available())'
    git rev-parse HEAD
} >"$out/machine.txt" 2>&1
code=0
if [ "$what" = tests ] || [ "$what" = all ]; then
    timeout -k 10 580 "$python" -m pytest -m gpu -p no:cacheprovider --durations=20 --junitxml="$out/tests.xml" \
        tests/test_device.py 2>&1 | tee "$out/tests.txt" | tail -n 60
    code=${PIPESTATUS[0]}
fi
if [ "$what" = bench ] || [ "$what" = all ]; then
    timeout -k 10 590 "$python" -m benchmarks gpu --out "$out" 2>&1 | tee "$out/bench.txt"
    [ "${PIPESTATUS[0]}" = 0 ] || code=1
fi
rm -rf "$out/site" "$out/cache"
echo "results in $out"
exit "$code"
