"""Training artefacts on their way: from the server that exports them, by gateways' caches, to devices.

An artefact is one file of data, named by the SHA-256 of its content. Who has one offers it by task and
runtime (`offer`), serves it over the front that devices use for Flower (`serving`), keeps it in a folder
(`store`), and fetches it from the tier above (`download`).
"""
