"""LangChain's ChatOpenAI asks the service: whole, streamed, in turns, with a scale of one's own.

pip install langchain-openai
python examples/other_clients/langchain_chat.py http://127.0.0.1:8000
"""

import base64
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

PICTURE = Path(__file__).parents[2] / "serve/pictures/scene-00.png"


def main(url: str) -> None:
    """Ask in four ways and print the answers."""
    picture = base64.b64encode(PICTURE.read_bytes()).decode()
    question = HumanMessage(
        [
            {"type": "image", "base64": picture, "mime_type": "image/png"},
            {"type": "text", "text": "what colour is the biggest shape?"},
        ]
    )
    at = {"base_url": f"{url}/v1", "api_key": "none", "max_tokens": 16}
    chat = ChatOpenAI(model="m3-auto", **at)
    first = chat.invoke([question])
    print("whole:   ", first.content, first.usage_metadata)
    print("streamed:", "".join(str(chunk.content) for chunk in chat.stream([question])))
    then = HumanMessage("what does the sign say?")
    print("turns:   ", chat.invoke([question, first, then]).content)
    pinned = ChatOpenAI(model="m3-auto", extra_body={"routing": {"scale": 9}}, **at)
    print("9 tokens:", pinned.invoke([question]).content)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000")
