"""Which images of Fashion-MNIST are kept: a sketch (`_set_sketch`) of the sha256 of 69,946 images' 784 pixels."""

from __future__ import annotations

# base85 of pack(sketch(sha256 of every distinct image in the first release))
SKETCH = (
    "!|3KBSVBeTp>Ax{g3mAmIA<>oPa={e--a9EwZiE=jP4x=^ET*MEKyP4AKKIt+^LPCr|h_y?#>>{&PA@L#Y9_cdA6_<%ECV=<DTt&rb%g@8NM*q"
    "x2KXO`|nY#oq=*z%AO#(-S6J29s)6>fSl0@Ph(Pti#^bx@AWQ&zQpb<?+gV-p`cS1x9(k>F$lTdV9~lj03PhxAp|s3yrwMjb9D?LYD*g(%0YUP"
    "wOerOW+gn}@jDnFJ*u!yHi@fWE5mA79tyw(tt-5!Y3ofu)f5Evg?uZK;if2XmKbkpumu;C<(go+?!zaIaFmGY!SZ-7H3+9Cb48Ur1-e)GEJ3H8"
    "G|1Y|@%%M3??=wJ<cEKu5imPg=g@A$M{u%gIewT^Uo$CUhTgZf_d&wwwM`@<RK$651X!-AOgaUmTNm5cl<Ky#H7o~PJyO=Dm7r4GZIUy4jUT<r"
    "NpMU3lqG~!RazGfUMb_vuWIiJe<tW5U+>@uM1g_wCHxzN;P%riIJtc+YYW)gkGRwAKGnmy7Qj~+Kj4%jH3a)n_4AzzBAH1;Pede0=UN7#80Hgq"
    "qapqC*)do>OUS18-G*|8h5qg-m7)EEK!Cih0!j0WV|TEOvjTV^IK5Jj1FopGaMDBv(cJ@GDd@X%0Zye`(V*-c5V{;aISzZ?A~I>W<<fCuREB<~"
    "R*;nWKvCG4KSSOh(!F=U%Ut(T6jlaIj)rE}1es?7oQ@${hFT~58}QmFd$_9gO&yZht=oD%O5NB+`5o@V6`CVax9Z}UdAT7PI`&vr#ypT8N5+V+"
    "T0Wx|zCgMdJ5O0Bb4$TaEvYh=%B@t|<1&^~dPrNG1SdL$4J#Xgc)`d{M7;A{HX~Q1>|{hksdU_!@5tvc(b-D;Z};A<$J1}Wt;>%dvxvGdxGwMx"
    "uO348rS|_(Y=@ko)!qT1Bj>G6>(NaxWj8UW{~>EAk&K)L`Hqk)#`or<#?Db%q?mnPPb};e5n`=K@>-V=Pp+wYZQom`<n%_ID)$VvX>nStl*W!_"
    "&&++A!d{T~Gvch}wN6o5_>()0bRzD^P4JGxdcHqwi5~<c(SOz4C6Khn(WeH!BN1FXP`Y&LbLaO~+z41Z(z5d?F+f4BL=~4nQ}hFY4A0c1Xa!^l"
    "8LpCcfx=FLQSFXwvt)?(Mso+)iZ{Twzo`2@S}sWJfI;WM^j<r?Y19Z~SE0LrA9xjwy79(UFqmP-+QPoKMTW#1ti;M8W&6w#(IV%k$4*y&jVxGz"
    "yfe-{e0dDb1Ps*SNTFY_DW+tA>@dg?HjV$1(D8RLxTGXqayx6wquy>bE^E|9Z7!_x$vAoGl_QCnOx$tp=D_|gdJ0Kl^YzIZtyo%Ve-$gFv}wsl"
    "m(gM|EPOO2(KX6mTkr~3+VoXac?@Z!k;+O&gLD`z4&Xq%2qSv*zF!i_(7rR|!`_VxxN};MB?-!>=TSHf?m9RUhC92z-6_PtZKVbEZ7OELUj7Y8"
    "oh{{v9z&EpLwyx%ReR2m)}Z8SjD!tlJ^iZFtl6CrQ0}2WVW%{Z?&I}2*Dnx$<1y5T(eI%8CayOWxgVUeomL+*nrVWOr9rqzK5Vl+%gz`}s2j7y"
    "FXKpqknko!3)E%?8z#g$)eu$>C<8HuzkLYh?p5mE46ossO;%G2Ya1(W<>zd|4fgmiz|Z%pk<6sp4^QRfOFag)Xs_G4QbR&lbk!?fP`CxgM(XlZ"
    "qFg`n(9+wvw|&gI!T8nao=nzs3X$)LROdHu*Y>sV3thajv0}Ai$T#QglgFV1w!(~=Go?NR1ZHK;w<96q<mo=PR>4Bfy9SKttmD-rkP`?<8BcQ_"
    "Z~OflCojTO8ds+uhQ$c{#*;DFA%0@A`W9I7IeDA#Zp9`9exK5FpFRRPHMgFYBw9E2-4bz-U7J-R;#Ru)A`=ejkmEsz+UT6x?*crTIBD`B;G63K"
    "iWvelm9w5?*R`2Jzq9_uE~`#0@MyGV`gJo1-VGyo(CI!^u`$x+w#HSYeb{9qFabF4!wcb?%K({Ot9{seVDD#Ea3Q5>lgq>FhER)q$dtvcEb-IZ"
    "GsifLAyVWY(ZKdN$z!nt"
)
