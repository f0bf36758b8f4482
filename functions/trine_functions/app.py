"""The app of the research functions; installed under the entry point ``trine.apps``."""

from trine import App
from trine_functions import ledger, loop, pool, queries, report, search, submit, trees

app = App("research")
for part in (ledger, queries, submit, trees, search, pool, report, loop):
    app.include(part.app)
