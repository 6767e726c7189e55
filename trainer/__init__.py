"""Devices, time and durability: trains any objective on any source."""
