"""Keys and certificates: who is who on the brokers and servers, and whose tasks a machine obeys."""
