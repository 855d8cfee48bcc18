"""Many processes that migrate one database at the same moment. Prints what each has applied, a line each.

usage: python migrating_crowd.py URL COUNT
"""

import os
import sys

from pgworkflows.migrate import migrate

url, count = sys.argv[1], int(sys.argv[2])
gate, opening = os.pipe()
children = []
for _ in range(count):
    child = os.fork()
    if child == 0:
        os.close(opening)
        os.read(gate, 1)  # returns when the parent closes its end
        applied = migrate(url)
        os.write(1, f"{[migration.number for migration in applied]}\n".encode())
        os._exit(0)
    children.append(child)
os.close(opening)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
