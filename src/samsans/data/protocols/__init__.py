"""Published splits as plain data, and how they are found in a data set of one's own."""

from samsans.data.protocols.protocols import Placement, Protocol, load, names, place

__all__ = ["Placement", "Protocol", "load", "names", "place"]
