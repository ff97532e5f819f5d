"""Sources to conversations: files, partitions, rows, shapes, and the rows that are rejected."""

from premask.read.conversation import REASONS as REASONS
from premask.read.conversation import Conversation as Conversation
from premask.read.conversation import Message as Message
from premask.read.conversation import Rejected as Rejected
from premask.read.cut import cut_array as cut_array
from premask.read.files import PARTITION_BYTES as PARTITION_BYTES
from premask.read.files import Line as Line
from premask.read.files import Partition as Partition
from premask.read.files import Source as Source
from premask.read.files import digest_file as digest_file
from premask.read.files import first_rows as first_rows
from premask.read.files import open_sources as open_sources
from premask.read.files import parse as parse
from premask.read.files import partitions as partitions
from premask.read.files import read_partition as read_partition
from premask.read.shapes import FORMATS as FORMATS
from premask.read.shapes import Format as Format
from premask.read.shapes import convert as convert
from premask.read.shapes import detect as detect
