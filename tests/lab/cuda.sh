#!/usr/bin/env bash
# cuda.sh DIR: puts a CUDA 12.4 toolkit that still knows sm_61 together in DIR (about 1 GB), without installing anything:
# the compiler out of one package of Debian 13 (non-free, 87 MB), headers and libraries from NVIDIA's wheels (390 MB, nearly
# all of it cuBLAS). For compiling on a machine without a card: programs link, and do not run. Once made it is left alone.
set -euo pipefail
dir=$1
[ -e "$dir/complete" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "lab: putting CUDA 12.4 together (480 MB of downloads)"

# A private apt configuration: the machine's own sources stay as they are.
mkdir -p "$work"/{lists,cache/archives}/partial
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 -E '/debian/?$')
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive trixie non-free" >"$work/sources.list"
apt=(-qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists"
    -o Dir::Cache="$work/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$work" && apt-get "${apt[@]}" download nvidia-cuda-toolkit && dpkg-deb -x nvidia-cuda-toolkit_*.deb deb) >/dev/null

python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip download -qq --disable-pip-version-check --no-deps -d "$work/wheels" \
    nvidia-cuda-nvcc-cu12==12.4.131 nvidia-cuda-runtime-cu12==12.4.127 \
    nvidia-cuda-cccl-cu12==12.4.127.post1 nvidia-cublas-cu12==12.4.5.8
for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$work/python"; done

# NVIDIA's own layout.
mkdir -p "$dir"/{bin,include,lib64,nvvm/bin,nvvm/libdevice}
deb=$work/deb/usr
cp -a "$deb"/lib/nvidia-cuda-toolkit/bin/{nvcc,crt} "$dir/bin/"
cp -a "$deb"/bin/{bin2c,cudafe++,cuobjdump,fatbinary,nvlink,ptxas,__nvcc_device_query} "$dir/bin/"
cp -a "$deb/lib/nvidia-cuda-toolkit/bin/cicc" "$dir/nvvm/bin/"
cp -a "$deb"/lib/nvidia-cuda-toolkit/libdevice/*.bc "$dir/nvvm/libdevice/"
for part in "$work"/python/nvidia/*/; do
    [ ! -d "$part/include" ] || cp -a "$part/include/." "$dir/include/"
    [ ! -d "$part/lib" ] || cp -a "$part/lib/." "$dir/lib64/"
done
rm -f "$dir"/lib64/__init__.py "$dir"/include/__init__.py
for library in "$dir"/lib64/*.so.*; do ln -sf "${library##*/}" "${library%%.so.*}.so"; done
ln -sfn lib64 "$dir/lib"
# The wheels have no static libraries: what asks for the runtime's gets the shared one (a linker script), and nothing takes
# anything from the other.
echo 'INPUT(-lcudart)' >"$dir/lib64/libcudart_static.a"
ar rcs "$dir/lib64/libcudadevrt.a"
cat >"$dir/bin/nvcc.profile" <<'END'
TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/$(_NVVM_BRANCH_)/libdevice
LD_LIBRARY_PATH += $(TOP)/lib:
PATH            += $(TOP)/$(_NVVM_BRANCH_)/bin:$(_HERE_):
INCLUDES        +=  "-I$(TOP)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/lib64"
CUDAFE_FLAGS    +=
PTXAS_FLAGS     +=
END
"$dir/bin/nvcc" --version | grep -q 'release 12.4,'
touch "$dir/complete"
