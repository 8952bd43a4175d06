"""E-mail messages: who wrote what to whom, and what is attached.

Test: tests/search/test_formats.py.
"""

from __future__ import annotations

import email
import email.policy
from email.message import MIMEPart

from m2bert.search.formats import FormatError, Parsed, parse
from m2bert.search.formats.markup import write_html
from m2bert.search.sections import SectionedText

SHOWN = ("Subject", "From", "To", "Cc", "Date")


def read_email(data: bytes) -> Parsed:
    """A message as plain text where it has some, else from its HTML, and the texts of its attachments.

    The sections are the message, by its subject, and each attachment, by its name. An attachment that cannot be read
    is there with its name alone, and is said to be lost.
    """
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not any(name in message for name in SHOWN):
        raise FormatError("broken, or not an e-mail: none of its lines says from or to whom it is")
    out = SectionedText()
    subject = " ".join(str(message["Subject"] or "message").split())
    out.begin(subject)
    out.write("".join(f"{name}: {message[name]}\n" for name in SHOWN if name in message) + "\n")
    body = message.get_body(("plain", "html"))
    if body is not None:
        _write_body(out, body)
    lost = [each for part in message.iter_attachments() for each in _write_attachment(out, part)]
    return Parsed.of(out, lost=lost)


def _write_body(out: SectionedText, body: MIMEPart) -> None:
    content = body.get_content()
    if body.get_content_subtype() == "html":
        write_html(out, content)
    else:
        out.write(content)


def _write_attachment(out: SectionedText, part: MIMEPart) -> list[tuple[str, str]]:
    """Write it, and return what of it could not be read: names and reasons."""
    forwarded = part.get_content_type() == "message/rfc822"
    name = part.get_filename() or ("message.eml" if forwarded else "attachment")
    out.write("\n\n")
    out.begin(name)
    out.write(f"{name}\n\n")
    payload = part.get_content().as_bytes() if forwarded else part.get_payload(decode=True)
    try:
        attached = parse(payload if isinstance(payload, bytes) else b"", name)
    except FormatError as error:
        return [(name, error.reason)]
    place = 0
    for section in attached.sections:
        out.write(attached.text[place : section.start])
        out.begin(f"{name}, {section.label}" if section.label else name)
        place = section.start
    out.write(attached.text[place:])
    return [(f"{name}: {inner}", reason) for inner, reason in attached.lost]
