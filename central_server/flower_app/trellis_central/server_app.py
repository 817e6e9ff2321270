"""The ServerApp: it stands in the installed package, not in the FAB."""

from central_server.rounds import app as rounds

app = rounds.app  # an assignment, because Flower looks for one in this file's text
