#!/bin/sh
# Builds the suite for Windows by Debian's compiler, with a standard library built from source, and runs
# it under wine. Installs missing packages (as root, or by sudo). Needs a nightly cargo. Passes its
# arguments to cargo test.
set -eu
here=$(dirname "$(realpath "$0")")
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../target}")
rust=$target/debian-rust
"$here/debian-rust.sh" "$rust" "$(dpkg --print-architecture)" wine64 gcc-mingw-w64-x86-64-win32

LD_LIBRARY_PATH=$rust/usr/lib/$(dpkg --print-architecture | sed "s/amd64/x86_64/")-linux-gnu
export LD_LIBRARY_PATH
# Debian's stable compiler needs this for -Zbuild-std.
export RUSTC="$rust/usr/bin/rustc" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$target/windows"
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=/usr/lib/wine/wine64

# The standard library gets random numbers from a library that Debian's wine does not have yet.
mkdir -p "$target/wine-libraries"
cat >"$target/wine-libraries/random.c" <<'END'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID data, ULONG size);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size)
{
    return SystemFunction036(data, (ULONG)size);
}
END
x86_64-w64-mingw32-gcc -shared -o "$target/wine-libraries/bcryptprimitives.dll" \
    "$target/wine-libraries/random.c" -ladvapi32
export WINEPATH="$target/wine-libraries"
export WINEDEBUG=-all WINEPREFIX="$target/wine"
cd "$here/.."
cargo +nightly test --target x86_64-pc-windows-gnu -Zbuild-std=std,panic_unwind,test \
    --test coroutines --test locks --test migration --test storms "$@"
