// Nothing on this page moves.
