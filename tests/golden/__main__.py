"""Show how today's trajectories differ from those kept, and with `--write` keep them: `python -m tests.golden`."""

import sys

from tests.golden.runs import RUNS, differences, keep, kept, made

for name in RUNS:
    runs, before = made(name), kept(name)
    for course in sorted(runs.keys() | before.keys()):
        for line in differences(runs.get(course, {}), before.get(course, {})):
            print(f"{name} / {course}: {line}")
    if "--write" in sys.argv[1:]:
        keep(name, runs)
