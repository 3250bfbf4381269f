"""Chooses the wheels for a machine that fetches nothing, and makes them small enough to travel.

    wheels.py pins PACKAGES LOCK     the lines of LOCK, with their hashes, of the named packages
    wheels.py finish FOLDER MIB      drop what the GPU cannot use, write SHA256SUMS, print sizes

Needs the standard library only.
"""

import re
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

MIB = 2**20
# bitsandbytes carries one library for each version of CUDA, ROCm and XPU; the machine loads that
# of its own torch, or the CPU's.
UNUSED = re.compile(r"bitsandbytes/libbitsandbytes_(?!cuda130\.|cpu\.)\w+\.so$")


def pins(packages: Path, lock: Path) -> list[str]:
    """Return the blocks of `lock` (a pin and its hashes) of the packages named in a file.

    Raises SystemExit where the lock has no pin for one of them.
    """
    wanted = [line for line in packages.read_text().split("\n") if line and line[0] != "#"]
    blocks: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", lock.read_text()):
        blocks[block.partition("==")[0]] = block
    if lost := [name for name in wanted if name not in blocks]:
        raise SystemExit(f"{lock} has no pin for {', '.join(lost)}: correct {packages}")
    return [blocks[name].rstrip("\n") for name in wanted]


def slim(wheel: Path) -> None:
    """Write the wheel again without the files of UNUSED, its RECORD corrected."""
    small = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            if UNUSED.match(info.filename):
                continue
            content = old.read(info)
            if info.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                kept = [line for line in lines if not UNUSED.match(line.partition(",")[0])]
                content = "".join(kept).encode()
            new.writestr(info, content)
    small.replace(wheel)


def finish(folder: Path, limit: int) -> None:
    """Make the wheels of `folder` smaller, write their checksums, print what they weigh.

    Raises SystemExit where they weigh more than `limit` MiB together.
    """
    for wheel in folder.glob("bitsandbytes-*.whl"):
        slim(wheel)
    wheels = sorted(folder.glob("*.whl"))
    sums = [f"{sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n" for wheel in wheels]
    (folder / "SHA256SUMS").write_text("".join(sums))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / MIB:7.2f} MiB  {wheel.name}")
    whole = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{whole / MIB:7.2f} MiB  {len(wheels)} wheels in {folder}, at most {limit}")
    if whole > limit * MIB:
        raise SystemExit(f"more than one transfer of {limit} MiB: shorten packages.txt")


def main() -> None:
    """Run the command that the arguments name."""
    match sys.argv[1:]:
        case ["pins", packages, lock]:
            print("\n".join(pins(Path(packages), Path(lock))))
        case ["finish", folder, limit]:
            finish(Path(folder), int(limit))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
