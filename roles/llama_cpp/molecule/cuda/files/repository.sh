#!/bin/sh
# repository.sh DIR NAME=VERSION...: a signed apt repository of packages that hold nothing, but for a compiler in the one
# that NVIDIA has it in, and of what nobody is to take: a newer toolkit, a driver, a newer package of the distribution's, and
# a distribution's toolkit that comes with Ubuntu's libcuda1. Prints the fingerprint of its key.
set -eu
dir=$1
shift
export GNUPGHOME=/root/.repository-key
mkdir -p "$dir" /root/packages
[ -d "$GNUPGHOME" ] || {
    mkdir -m 700 "$GNUPGHOME"
    gpg --batch --quiet --passphrase '' --quick-generate-key 'played repository' rsa3072 sign never
}
gpg --batch --armor --export >"$dir/key.pub"
for package in "$@" cuda-nvcc-13-0=13.0.88-1 cuda-drivers=590.48.01-1 tree=99-1 \
    nvidia-cuda-toolkit=99-1 libnvidia-compute-590=590.48.01-1; do
    name=${package%%=*}
    tree=/root/packages/$name
    mkdir -p "$tree/DEBIAN"
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: lab\nDescription: played\n' \
        "$name" "${package#*=}" >"$tree/DEBIAN/control"
    case $name in
        cuda-cccl-12-9) echo 'Depends: tree' ;;
        nvidia-cuda-toolkit) echo 'Depends: libnvidia-compute-590' ;;
    esac >>"$tree/DEBIAN/control"
    if [ "$name" = cuda-nvcc-12-9 ]; then
        # The lab's 12.4 under the other's name and in its place.
        mkdir -p "$tree/usr/local/cuda-12.9/bin"
        for part in include lib64 nvvm; do ln -sfn "/srv/cuda-12.4/$part" "$tree/usr/local/cuda-12.9/$part"; done
        cat >"$tree/usr/local/cuda-12.9/bin/nvcc" <<'NVCC'
#!/bin/sh
[ "$*" != --version ] || exec echo 'Cuda compilation tools, release 12.9, V12.9.86'
exec /srv/cuda-12.4/bin/nvcc "$@"
NVCC
        chmod 755 "$tree/usr/local/cuda-12.9/bin/nvcc"
    fi
    dpkg-deb --root-owner-group --build "$tree" "$dir/$name.deb" >/dev/null
done
cd "$dir"
for deb in *.deb; do
    dpkg-deb --field "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d' ' -f1)"
done >Packages
{
    echo "Date: $(date -Ru)"
    echo SHA256:
    echo " $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"
} | gpg --batch --quiet --yes --clearsign --output InRelease
gpg --batch --with-colons --list-keys | sed -n 's/^fpr:*\([0-9A-F]*\):$/\1/p'
