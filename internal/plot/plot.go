// Package plot draws SVG: with nothing but the standard library, in colours that are
// told apart by people who see no red or no green, too, and that suit light and dark
// pages.
package plot

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// Drawing collects the elements of an SVG; make it with its size in pixels. Colours are classes, so that one file
// suits light and dark pages.
type Drawing struct {
	Width, Height float64
	b             strings.Builder
}

// Style has the colours of both: of eight series that are told apart by people
// who see no red or no green, too (after Okabe and Ito), and of what frames them.
const Style = `text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-size:12px;fill:#24292f}
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
`

// Colours is how many series can be told apart.
const Colours = 8

// Anchor is where a text's point lies.
type Anchor string

// Where a text's point lies.
const (
	Start  Anchor = "start"
	Middle Anchor = "middle"
	End    Anchor = "end"
)

// Line draws from one point to another.
func (d *Drawing) Line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", class, x1, y1, x2, y2)
}

// Rect draws a filled rectangle.
func (d *Drawing) Rect(class string, x, y, w, h float64) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`+"\n", class, x, y, w, h)
}

// Dot marks a point.
func (d *Drawing) Dot(class string, x, y float64) {
	fmt.Fprintf(&d.b, `<circle class="%s" cx="%.1f" cy="%.1f" r="3.5"/>`+"\n", class, x, y)
}

// Path joins points.
func (d *Drawing) Path(class string, points [][2]float64) {
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

// Text writes at a point.
func (d *Drawing) Text(class string, x, y float64, at Anchor, s string) {
	fmt.Fprintf(&d.b, `<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", class, x, y, at, escape(s))
}

// Upright writes a text that reads from below, around its middle.
func (d *Drawing) Upright(x, y float64, s string) {
	fmt.Fprintf(&d.b, `<text transform="translate(%.1f %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", x, y, escape(s))
}

// File is all of it. The title is what a screen reader says.
func (d *Drawing) File(title string) []byte {
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]g" height="%[2]g" viewBox="0 0 %[1]g %[2]g" role="img"><title>%[3]s</title>`+"\n",
		d.Width, d.Height, escape(title))
	out.WriteString("<style>\n" + Style + "</style>\n")
	fmt.Fprintf(&out, `<rect class="page" width="%g" height="%g"/>`+"\n", d.Width, d.Height)
	out.WriteString(d.b.String())
	out.WriteString("</svg>\n")
	return []byte(out.String())
}

// Element is all of it for a page that has Style already.
func (d *Drawing) Element(title string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img"><title>%s</title>`+"\n", d.Width, d.Height, escape(title)) + d.b.String() + "</svg>\n"
}

// Area fills what is between points and a height below them.
func (d *Drawing) Area(class string, points [][2]float64, foot float64) {
	if len(points) < 2 {
		return
	}
	fmt.Fprintf(&d.b, `<polygon class="%s" points="%.1f,%.1f`, class, points[0][0], foot)
	for _, p := range points {
		fmt.Fprintf(&d.b, " %.1f,%.1f", p[0], p[1])
	}
	fmt.Fprintf(&d.b, " %.1f,%.1f\"/>\n", points[len(points)-1][0], foot)
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}
