"""Small helpers without a domain: argument types, numbers, modules, tensors, locks, logging."""
