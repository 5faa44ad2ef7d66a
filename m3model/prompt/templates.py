"""Chat templates (Jinja, as tokenizers carry them): messages to text, one `<image>` per picture.

Message content may be a string or a list of text and image parts. They know no token ids.
"""

from __future__ import annotations

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

_TEXT_OF = """
{%- macro text_of(message, joint) -%}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- set texts = message['content'] | selectattr('type', 'equalto', 'text') -%}
    {{- texts | map(attribute='text') | join(joint) -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro images_of(message, mark) -%}
  {%- if message['content'] is not string -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}
      {{- mark -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""

# `<s><image><q>question<a>answer</s>`: pictures before the text, as m3-mini is trained. System text
# leads the question after it.
QUESTION_TEMPLATE = (
    _TEXT_OF
    + """
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set ns.system = ns.system + text_of(message, ' ') + ' ' -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<a>' + text_of(message, ' ') + eos_token -}}
  {%- else -%}
    {{- images_of(message, '<image>') + '<q>' + ns.system + text_of(message, ' ') -}}
    {%- set ns.system = '' -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<a>' -}}
{%- endif -%}
"""
)

# vicuna_v1, which LLaVA-1.5 and its M3 descendants are trained with: each picture on a line of its
# own before the text. A system message replaces the built-in line.
VICUNA_TEMPLATE = (
    _TEXT_OF
    + """
{%- set ns = namespace(system='', turns='') -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- set ns.system = ns.system + text_of(message, '\\n') -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set ns.turns = ns.turns + 'ASSISTANT: ' + text_of(message, '\\n') + eos_token -%}
  {%- else -%}
    {%- set ns.turns = ns.turns + 'USER: ' + images_of(message, '<image>\\n') -%}
    {%- set ns.turns = ns.turns + text_of(message, '\\n') + ' ' -%}
  {%- endif -%}
{%- endfor -%}
{{- bos_token + (ns.system or \""""
    + VICUNA_SYSTEM
    + """\") + ' ' + ns.turns -}}
{%- if add_generation_prompt -%}
  {{- 'ASSISTANT:' -}}
{%- endif -%}
"""
)
