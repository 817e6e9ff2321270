"""The services' HTTP: one server wrapper and one client, with one error format between them."""
