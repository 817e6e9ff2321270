"""The ServerApp: it stands in the installed package, not in the FAB."""

from central_server.rounds.app import app as app
