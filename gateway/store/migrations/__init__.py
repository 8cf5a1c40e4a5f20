"""The way from every earlier schema to the present one."""
