"""What MetaStudio says: signatures and payloads. Pure: no I/O, no clock, standard library only."""
