"""``python -m agentpar.config``: print the JSON Schema."""

import json

from agentpar.config.document import json_schema

print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
