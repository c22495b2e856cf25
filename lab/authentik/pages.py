"""The pages that a person sees. All say that this is not Authentik."""

from __future__ import annotations

import html

from werkzeug.wrappers import Response

from lab.authentik.configuration import STAND_IN

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; background: #1d2330; color: #e8eaf0; margin: 0; }}
main {{ max-width: 24rem; margin: 12vh auto; background: #2a3142; padding: 2rem; border-radius: .5rem; }}
label {{ display: block; margin: 1rem 0 .25rem; }}
input {{ width: 100%; box-sizing: border-box; padding: .5rem; font: inherit; }}
button {{ margin-top: 1.25rem; width: 100%; padding: .6rem; font: inherit; background: #fd4b2d; color: #fff; }}
.error {{ color: #ff9d8a; }}
footer {{ font-size: .8rem; opacity: .7; margin-top: 2rem; }}
</style></head>
<body><main><h1>{title}</h1>{body}<footer>{footer}</footer></main></body></html>
"""

# The challenges of the flow executor, turned into forms: what Authentik's own page does with web components.
_FLOW = """<div id="challenge" aria-live="polite">Loading…</div>
<script>
const place = document.getElementById('challenge');
const url = location.pathname.replace('/if/flow/', '/api/v3/flows/executor/')
  + '?query=' + encodeURIComponent(location.search.slice(1));
const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};
const input = (label, properties) => [element('label', {htmlFor: properties.name}, label),
  element('input', {id: properties.name, required: true, ...properties})];
const fields = {
  'ak-stage-identification': () => input('Email or username',
    {name: 'uidField', autocomplete: 'username', autofocus: true}),
  'ak-stage-password': challenge => [element('p', {}, 'Signing in as ' + challenge.pending_user),
    ...input('Password', {name: 'password', type: 'password', autocomplete: 'current-password', autofocus: true})],
  'ak-stage-prompt': challenge => challenge.fields.flatMap(field => input(field.label,
    {name: field.field_key, type: field.type, placeholder: field.placeholder, autocomplete: 'new-password'})),
  'ak-stage-consent': challenge => [element('p', {}, challenge.header_text),
    element('ul', {}, ...challenge.permissions.map(each => element('li', {}, each.name)))],
};
async function step(answer) {
  const options = answer && {method: 'POST', body: JSON.stringify(answer),
    headers: {'Content-Type': 'application/json'}};
  const reply = await fetch(url, options || {});
  if (!reply.ok) { place.replaceChildren(element('p', {className: 'error'}, 'Server error ' + reply.status)); return; }
  const challenge = await reply.json();
  if (challenge.component === 'xak-flow-redirect') { location.assign(challenge.to); return; }
  if (challenge.component === 'ak-stage-access-denied') {
    place.replaceChildren(element('p', {className: 'error'}, challenge.error_message || 'Request has been denied.'));
    return;
  }
  document.querySelector('h1').textContent = challenge.flow_info.title;
  const errors = Object.values(challenge.response_errors || {}).flat();
  const form = element('form', {onsubmit: event => {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(form));
    if ('uidField' in values) { values.uid_field = values.uidField; }
    step({component: challenge.component, token: challenge.token, ...values});
  }}, ...errors.map(error => element('p', {className: 'error'}, error.string)),
    ...fields[challenge.component](challenge), element('button', {type: 'submit'}, 'Continue'));
  place.replaceChildren(form);
  form.querySelector('input')?.focus();
}
step();
</script>"""


def page(title: str, body: str, status: int = 200) -> Response:
    """Return a page; `body` is HTML."""
    text = _PAGE.format(title=html.escape(title), body=body, footer=html.escape(STAND_IN))
    return Response(text, status, content_type="text/html; charset=utf-8")


def message(title: str, text: str, status: int) -> Response:
    """Return a page that says one thing."""
    return page(title, f'<p class="error">{html.escape(text)}</p>', status)


def flow(title: str) -> Response:
    """Return the page that walks a visitor through a flow."""
    return page(title, _FLOW)


def denied() -> Response:
    """Return the page for a user whom the bindings of an application keep out: Authentik's has status 200 too."""
    return message("Permission denied", "Request has been denied.", 200)


def home(username: str) -> Response:
    """Return the page of a user who is signed in and wants nothing else."""
    return page("My applications", f"<p>Signed in as {html.escape(username)}.</p>")
