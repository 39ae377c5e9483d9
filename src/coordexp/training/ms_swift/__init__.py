"""ms_swift."""
