package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// drawing collects the elements of an SVG. Colours are classes, so that one file
// suits light and dark pages.
type drawing struct {
	width, height float64
	b             strings.Builder
}

// style has the colours of both: of eight series that are told apart by people
// who see no red or no green, too (after Okabe and Ito), and of what frames them.
const style = `<style>
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-size:12px;fill:#24292f}
.title{font-size:16px;font-weight:600}.sub{font-size:11px;fill:#57606a}
.page{fill:#ffffff}.grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#57606a;stroke-width:1}
.aim{stroke:#57606a;stroke-width:1.5;stroke-dasharray:2 4}
.line{fill:none;stroke-width:2.2}.dash{stroke-dasharray:6 4;stroke-width:1.8}
.s0{stroke:#0063a3}.s1{stroke:#c64f00}.s2{stroke:#00805d}.s3{stroke:#a5487c}.s4{stroke:#8a6d00}.s5{stroke:#3b8fc4}.s6{stroke:#6e7781}.s7{stroke:#24292f}
.f0{fill:#0063a3}.f1{fill:#c64f00}.f2{fill:#00805d}.f3{fill:#a5487c}.f4{fill:#8a6d00}.f5{fill:#3b8fc4}.f6{fill:#6e7781}.f7{fill:#24292f}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.sub{fill:#9da7b1}
.page{fill:#0d1117}.grid{stroke:#262c36}.axis{stroke:#9da7b1}.aim{stroke:#9da7b1}
.s0{stroke:#5ab4f2}.s1{stroke:#ff9147}.s2{stroke:#3fcf9f}.s3{stroke:#e89ac7}.s4{stroke:#f0d04a}.s5{stroke:#9ad1f5}.s6{stroke:#8b949e}.s7{stroke:#e6edf3}
.f0{fill:#5ab4f2}.f1{fill:#ff9147}.f2{fill:#3fcf9f}.f3{fill:#e89ac7}.f4{fill:#f0d04a}.f5{fill:#9ad1f5}.f6{fill:#8b949e}.f7{fill:#e6edf3}
}
</style>
`

// colours is how many series can be told apart.
const colours = 8

// anchor is where a text's point lies.
type anchor string

const (
	start  anchor = "start"
	middle anchor = "middle"
	end    anchor = "end"
)

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", class, x1, y1, x2, y2)
}

func (d *drawing) rect(class string, x, y, w, h float64) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`+"\n", class, x, y, w, h)
}

func (d *drawing) dot(class string, x, y float64) {
	fmt.Fprintf(&d.b, `<circle class="%s" cx="%.1f" cy="%.1f" r="3.5"/>`+"\n", class, x, y)
}

// path joins points.
func (d *drawing) path(class string, points [][2]float64) {
	if len(points) < 2 {
		return
	}
	fmt.Fprintf(&d.b, `<polyline class="%s" points="`, class)
	for i, p := range points {
		if i > 0 {
			d.b.WriteByte(' ')
		}
		fmt.Fprintf(&d.b, "%.1f,%.1f", p[0], p[1])
	}
	d.b.WriteString("\"/>\n")
}

func (d *drawing) text(class string, x, y float64, at anchor, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", class, x, y, at, escape(s))
}

// upright writes a text that reads from below, around its middle.
func (d *drawing) upright(x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text transform="translate(%.1f %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", x, y, escape(s))
}

// file is all of it. The title is what a screen reader says.
func (d *drawing) file(title string) []byte {
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]g" height="%[2]g" viewBox="0 0 %[1]g %[2]g" role="img"><title>%[3]s</title>`+"\n",
		d.width, d.height, escape(title))
	out.WriteString(style)
	fmt.Fprintf(&out, `<rect class="page" width="%g" height="%g"/>`+"\n", d.width, d.height)
	out.WriteString(d.b.String())
	out.WriteString("</svg>\n")
	return []byte(out.String())
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}
