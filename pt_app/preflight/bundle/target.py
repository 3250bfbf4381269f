"""The machine that a bundle is for: which wheels fit it, which requirements hold there."""

import re
import sys
from dataclasses import dataclass

from pt_app.core.errors import UserError

# PEP 600: the older names of three of its tags.
LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


@dataclass(frozen=True)
class Target:
    """A platform tag as wheels have it ("" means this machine's own) and a Python, "3.11"."""

    platform: str = ""
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"

    def __post_init__(self) -> None:
        """Raises UserError for a tag or a version that no wheel could have."""
        if self.platform:
            self._parts()
        if not re.fullmatch(r"3\.\d+", self.python):
            raise UserError(f"--python_version {self.python}: give it like 3.11")

    def pip_flags(self) -> list[str]:
        """Flags of `pip download` that choose the wheels of this machine."""
        flags = ["--only-binary=:all:", f"--python-version={self.python}"]
        if not self.platform:
            return flags
        return [*flags, "--implementation=cp", *(f"--platform={tag}" for tag in self._tags())]

    def _tags(self) -> list[str]:
        """All tags that run there: pip takes a given tag by its letters, without the older ones."""
        system, minor, machine = self._parts()
        if system == "macosx":
            return [f"macosx_{major}_0_{machine}" for major in range(minor, 10, -1)]
        tags = []
        for older in range(minor, 4, -1):
            tags.append(f"manylinux_2_{older}_{machine}")
            tags += [f"{LEGACY[older]}_{machine}"] if older in LEGACY else []
        return [*tags, f"linux_{machine}"]

    def _parts(self) -> tuple[str, int, str]:
        found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)|macosx_(\d+)_0_(arm64)", self.platform)
        if found is None:
            raise UserError(
                f"--platform {self.platform}: give a wheel's tag, such as manylinux_2_28_x86_64, "
                "manylinux_2_28_aarch64 or macosx_14_0_arm64"
            )
        linux, machine, mac, apple = found.groups()
        return ("manylinux", int(linux), machine) if linux else ("macosx", int(mac), apple)

    def environment(self) -> dict[str, str]:
        """What the markers of requirements are compared with there (PEP 508)."""
        from packaging.markers import default_environment

        values = {name: str(value) for name, value in default_environment().items()}
        values |= {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        if self.platform:
            system, _, machine = self._parts()
            mac = system == "macosx"
            values |= {
                "platform_machine": machine,
                "platform_system": "Darwin" if mac else "Linux",
                "sys_platform": "darwin" if mac else "linux",
                "os_name": "posix",
            }
        return values
