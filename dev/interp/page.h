// The page that report writes, apart from its numbers: the files of page/, which the Makefile puts into the
// program as they are. page.html is the frame, with {{title}}, {{style}}, {{data}} and {{script}} where those
// go; the script draws everything from the JSON in the page's <script type="application/json"> elements, one
// for the run and one per tool.
#pragma once

extern const char page_html[], page_style[], page_script[];
