"""No code is shipped to devices: their ClientApp is the agent's own. Flower demands that a FAB names one."""

from flwr.clientapp import ClientApp

app = ClientApp()
