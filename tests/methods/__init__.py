"""Every method against loops that were written from its paper."""
