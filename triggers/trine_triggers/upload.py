"""Upload: a file that came over HTTP, by reference to the object store."""

from pydantic import BaseModel, ConfigDict, Field


class Upload(BaseModel):
    """What a payload holds in place of a file: its content is ``client.objects.get(object)``."""

    model_config = ConfigDict(frozen=True)

    object: str = Field(pattern="^[0-9a-f]{64}$")  # the SHA-256 of the content
    size: int = Field(ge=0)  # bytes
    content_type: str = "application/octet-stream"
    filename: str | None = None
