package page

import (
	"strconv"
	"strings"
	"time"
)

const (
	// Slots of slotTime each are kept: an hour.
	slots    = 360
	slotTime = 10 * time.Second

	chartHeight = 60 // of the drawing; its width is slots
)

// point is what happened in one slot.
type point struct {
	known   bool
	rate    float64 // bytes a second
	latency float64 // seconds, the slowest; below 0: nothing was uploaded
}

// history is the last hour of one source, in fixed memory.
type history struct {
	ring  [slots]point
	slot  int64 // of the newest point
	begun bool

	total int64 // bytes at the last sample
	carry int64 // of a file that left the workers' hands and is not acknowledged yet, at most 0
	at    time.Time
}

// add records a sample that was taken at now, in slot.
func (h *history) add(m Meter, slot int64, now time.Time) {
	total := m.Acknowledged + m.UnderWay
	if !h.begun {
		h.begun, h.slot, h.total, h.at = true, slot, total, now
		return
	}
	if slot <= h.slot {
		return
	}
	for s := max(h.slot+1, slot-slots+1); s < slot; s++ {
		h.ring[s%slots] = point{} // No sample was taken then.
	}
	p := point{known: true, latency: -1}
	moved := total - h.total + h.carry
	if took := now.Sub(h.at).Seconds(); took > 0 && moved > 0 {
		p.rate = float64(moved) / took
	}
	if h.carry < 0 {
		h.carry = 0 // It was given up: what it had sent does not count against others for longer.
	} else {
		h.carry = min(0, moved)
	}
	if m.Uploads > 0 {
		p.latency = m.Slowest.Seconds()
	}
	h.ring[slot%slots] = p
	h.slot, h.total, h.at = slot, total, now
}

// values returns what pick says of each slot of the last hour, the oldest
// first and -1 where there is nothing, the newest of them and the highest.
func (h *history) values(pick func(point) (v float64, ok bool)) (vs [slots]float64, newest, highest float64) {
	highest = -1
	for i := range vs {
		vs[i] = -1
		s := h.slot - slots + 1 + int64(i)
		if s < 0 {
			continue
		}
		p := h.ring[s%slots]
		if v, ok := pick(p); ok && p.known {
			vs[i] = v
			highest = max(highest, v)
		}
	}
	return vs, vs[slots-1], highest
}

func rate(p point) (float64, bool)    { return p.rate, true }
func latency(p point) (float64, bool) { return p.latency, p.latency >= 0 }

// draw returns an SVG path of steps from the ground to each value, scaled to
// highest. A value below 0 is not drawn.
func draw(vs [slots]float64, highest float64) string {
	if highest <= 0 {
		return ""
	}
	var b strings.Builder
	for i := 0; i < slots; {
		height := stepHeight(vs[i], highest)
		end := i + 1
		for end < slots && stepHeight(vs[end], highest) == height {
			end++
		}
		if height > 0 {
			b.WriteString("M" + strconv.Itoa(i) + " " + strconv.Itoa(chartHeight) + "v-" + strconv.Itoa(height) +
				"h" + strconv.Itoa(end-i) + "v" + strconv.Itoa(height) + "z")
		}
		i = end
	}
	return b.String()
}

func stepHeight(v, highest float64) int {
	if v <= 0 {
		return 0
	}
	return max(1, int(v/highest*chartHeight))
}
